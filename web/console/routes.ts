import type { ComponentType } from 'preact'
import { Devices } from './screens/devices'
import { Doctor } from './screens/doctor'
import { History } from './screens/history'
import { Now } from './screens/now'
import { Quarantine } from './screens/quarantine'
import { Slots } from './screens/slots'
import { Streams } from './screens/streams'
import { Tenants } from './screens/tenants'
import { Trace } from './screens/trace'
import { Uploads } from './screens/uploads'

export type Params = Record<string, string>

export type Route = {
  path: string
  title: string
  /** What the screen answers. */
  question: string
  screen: ComponentType<{ params: Params }>
  /** The command line that shows the same. */
  command: (params: Params) => string
}

const tenantOption = ({ tenant }: Params): string => (tenant ? ` --tenant ${tenant}` : '')

export const ROUTES: Route[] = [
  {
    path: 'now',
    title: 'Now',
    question: 'Is what people see fresh?',
    screen: Now,
    command: () => 'posduif status --watch',
  },
  {
    path: 'slots',
    title: 'Slots',
    question: 'What does each slot cost, and until when?',
    screen: Slots,
    command: () => 'posduif slot list',
  },
  {
    path: 'trace',
    title: 'Trace',
    question: 'What happened to this row?',
    screen: Trace,
    command: (params) => `posduif stream tail${tenantOption(params)}`,
  },
  {
    path: 'devices',
    title: 'Devices',
    question: 'Who is behind?',
    screen: Devices,
    command: (params) =>
      params['device']
        ? `posduif device show ${params['device']}${tenantOption(params)}`
        : `posduif device list${tenantOption(params)}`,
  },
  {
    path: 'tenants',
    title: 'Tenants',
    question: 'Which tenant suffers?',
    screen: Tenants,
    command: ({ tenant }) => (tenant ? `posduif tenant show ${tenant}` : 'posduif tenant list'),
  },
  {
    path: 'streams',
    title: 'Streams and groups',
    question: 'What does Redis hold?',
    screen: Streams,
    command: (params) => `posduif stream list${tenantOption(params)}`,
  },
  {
    path: 'uploads',
    title: 'Uploads and conflicts',
    question: 'What was refused, and why?',
    screen: Uploads,
    command: () => 'posduif tenant list',
  },
  {
    path: 'quarantine',
    title: 'Quarantine',
    question: 'What could not be delivered?',
    screen: Quarantine,
    command: ({ tenant }) => `posduif stream quarantine list${tenant ? ` --tenant ${tenant}` : ''}`,
  },
  {
    path: 'doctor',
    title: 'Doctor',
    question: 'What is set wrong?',
    screen: Doctor,
    command: () => 'posduif doctor',
  },
  {
    path: 'history',
    title: 'History',
    question: 'What broke, and when?',
    screen: History,
    command: (params) => {
      const options = ['tenant', 'actor', 'action'].map((name) => (params[name] ? ` --${name} ${params[name]}` : ''))
      return `posduif audit list${options.join('')}`
    },
  },
]

export const FIRST: Route = ROUTES[0] as Route

export function routeOf(path: string): Route | null {
  return path === '' ? FIRST : (ROUTES.find((route) => route.path === path) ?? null)
}
