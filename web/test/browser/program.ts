import { execFile, spawn, type ChildProcess } from 'node:child_process'
import { createInterface } from 'node:readline'
import { promisify } from 'node:util'

const run = promisify(execFile)

const START_MS = 60_000
const STOP_MS = 30_000
const COMMAND_MS = 30_000

export type Environment = Record<string, string>

function binary(): string {
  const named = process.env['POSDUIF_BIN']
  if (!named) throw new Error('POSDUIF_BIN names no program: run scripts/web --browser, or set it to a built posduif')
  return named
}

/** A command of the program that runs until it is stopped, after the JSON line that says that it is ready. */
export class Program<Ready> {
  readonly #process: ChildProcess
  readonly ready: Ready

  private constructor(process: ChildProcess, ready: Ready) {
    this.#process = process
    this.ready = ready
  }

  static async start<Ready>(args: string[], cwd: string, env: Environment): Promise<Program<Ready>> {
    const name = `posduif ${args[0]}`
    const child = spawn(binary(), [...args, '--json'], { cwd, env, stdio: ['ignore', 'pipe', 'pipe'] })
    const log: string[] = []
    createInterface({ input: child.stderr! }).on('line', (line) => log.push(line))
    const ready = await new Promise<Ready>((resolve, reject) => {
      const fail = (why: string): void => reject(new Error(`${name} ${why}:\n${log.slice(-20).join('\n')}`))
      const timer = setTimeout(() => {
        child.kill('SIGTERM')
        fail(`was not ready within ${START_MS / 1000} s`)
      }, START_MS)
      createInterface({ input: child.stdout! }).once('line', (line) => {
        clearTimeout(timer)
        resolve(JSON.parse(line) as Ready)
      })
      child.once('error', reject)
      child.once('exit', (code) => fail(`ended with ${code}`))
    })
    return new Program(child, ready)
  }

  /** Process ids of its children with the words that started them. */
  async children(): Promise<{ pid: number; command: string }[]> {
    const { stdout } = await run('ps', ['-o', 'pid=,args=', '--ppid', String(this.#process.pid)])
    return stdout
      .trim()
      .split('\n')
      .map((line) => /^\s*(\d+)\s+(.*)$/.exec(line))
      .flatMap((found) => (found ? [{ pid: Number(found[1]), command: found[2] ?? '' }] : []))
  }

  suspend(): void {
    this.#process.kill('SIGSTOP')
  }

  resume(): void {
    this.#process.kill('SIGCONT')
  }

  async stop(): Promise<void> {
    const { exitCode, signalCode } = this.#process
    if (exitCode !== null || signalCode !== null) return
    const ended = new Promise<void>((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`posduif did not end within ${STOP_MS / 1000} s`)), STOP_MS)
      this.#process.once('exit', () => {
        clearTimeout(timer)
        resolve()
      })
    })
    this.#process.kill('SIGTERM')
    await ended
  }
}

/** Runs a command of the program to its end and returns what it prints. */
export async function posduif(args: string[], cwd: string, env: Environment): Promise<string> {
  return (await run(binary(), args, { cwd, env, timeout: COMMAND_MS })).stdout
}

/** The lines that psql prints. */
export async function psql(url: string, text: string, timeout: number = COMMAND_MS): Promise<string[]> {
  const { stdout } = await run('psql', ['-qAtX', '-v', 'ON_ERROR_STOP=1', url, '-c', text], { timeout })
  return stdout.split('\n').filter((line) => line !== '')
}
