// E2B's unmodified JavaScript SDK and network policies, before the fake internet of tests/component/fake_internet.py.
// Says `done` when every promise held.
import assert from 'node:assert/strict'
import { ALL_TRAFFIC, Sandbox, SandboxError } from 'e2b'

const SITE = '203.0.113.10'
const EVIL = '203.0.113.20'

async function fetched(sandbox, url) {
  const command = `curl -sk --connect-timeout 3 --max-time 8 ${url} || echo cut`
  return (await sandbox.commands.run(command)).stdout.trim()
}

const sandbox = await Sandbox.create({ network: { denyOut: [ALL_TRAFFIC], allowOut: ['good.test', EVIL] } })
try {
  assert.equal(await fetched(sandbox, 'https://good.test'), 'web good.test')
  assert.match(await fetched(sandbox, `http://${EVIL}`), /^web/)
  assert.equal(await fetched(sandbox, `https://${SITE}`), 'cut')
  assert.deepEqual((await sandbox.getInfo()).network.allowOut, ['good.test', EVIL])

  await sandbox.updateNetwork({ denyOut: (ctx) => [ctx.allTraffic], allowOut: [SITE] })
  assert.match(await fetched(sandbox, `http://${SITE}`), /^web/)
  assert.equal(await fetched(sandbox, `http://${EVIL}`), 'cut')

  await sandbox.updateNetwork({ allowInternetAccess: false })
  assert.equal(await fetched(sandbox, `http://${SITE}`), 'cut')
  await sandbox.updateNetwork({})
  assert.match(await fetched(sandbox, `http://${EVIL}`), /^web/)

  const rules = { 'good.test': [{ transform: () => ({ headers: { 'X-Key': 't0p' } }) }] }
  await sandbox.updateNetwork({ rules })
  assert.match(await fetched(sandbox, 'https://good.test/head'), /X-Key: t0p/)
  assert.deepEqual((await sandbox.getInfo()).network.rules, {
    'good.test': [{ transform: { headers: { 'X-Key': '<hidden>' } } }],
  })
  await assert.rejects(sandbox.updateNetwork({ egressProxy: { address: 'proxy.test' } }), /host:port/)

  await assert.rejects(
    Sandbox.create({ network: { allowOut: ['good.test'] } }),
    (error) => error instanceof SandboxError && error.message.includes('ALL_TRAFFIC')
  )
} finally {
  await sandbox.kill()
}
console.log('done')
