import { memory } from '../../src/memory/index.js'
import { contract } from './contract.js'

contract('memory', async () => memory(), null)
