// Checks of reaching services in sandboxes with E2B's unmodified JavaScript SDK: run by test_e2b_ports.py, each by name.
import assert from 'node:assert/strict'
import { appendFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { Sandbox } from 'e2b'

const DEADLINE_MS = 30_000

function url(sandbox, port) {
  const host = sandbox.getHost(port)
  appendFileSync('/etc/hosts', `127.0.0.1 ${host.split(':')[0]}\n`)
  return `https://${host}`
}

async function created(options, body) {
  const sandbox = await Sandbox.create({ timeoutMs: 120_000, ...options })
  try {
    return await body(sandbox)
  } finally {
    await sandbox.kill()
  }
}

async function until(condition) {
  const deadline = Date.now() + DEADLINE_MS
  for (;;) {
    const value = await condition()
    if (value) return value
    assert.ok(Date.now() < deadline, 'not in time')
    await sleep(100)
  }
}

async function ok(address, headers = {}) {
  return until(async () => {
    const answer = await fetch(address, { headers })
    return answer.status === 200 && answer
  })
}

const checks = {
  async 'a host name reaches a service'() {
    await created({}, async (sandbox) => {
      await sandbox.commands.run('python -m http.server 8000', { background: true })
      assert.match(await (await ok(url(sandbox, 8000))).text(), /Directory listing/)
    })
  },

  async 'a killed sandbox is a 502'() {
    const { address, id } = await created({}, async (sandbox) => ({ address: url(sandbox, 3000), id: sandbox.sandboxId }))
    const answer = await fetch(address)
    assert.equal(answer.status, 502)
    assert.deepEqual(await answer.json(), { sandboxId: id, message: 'The sandbox was not found', code: 502 })
  },

  async 'private ports want the token'() {
    await created({ network: { allowPublicTraffic: false } }, async (sandbox) => {
      assert.ok(sandbox.trafficAccessToken)
      await sandbox.commands.run('python -m http.server 8080', { background: true })
      const address = url(sandbox, 8080)
      assert.equal((await fetch(address)).status, 403)
      await ok(address, { 'e2b-traffic-access-token': sandbox.trafficAccessToken })
    })
  },

  async 'traffic wakes a paused sandbox'() {
    await created({ lifecycle: { onTimeout: 'pause', autoResume: true } }, async (sandbox) => {
      await sandbox.commands.run('python -m http.server 8000', { background: true })
      const address = url(sandbox, 8000)
      await ok(address)
      await sandbox.pause()
      assert.equal((await fetch(address)).status, 200)
      assert.equal((await sandbox.getInfo()).state, 'running')
    })
  },

  async 'the domain alone is enough'() {
    delete process.env.E2B_API_URL
    delete process.env.E2B_SANDBOX_URL
    process.env.E2B_DOMAIN = process.env.PORTS_DOMAIN
    appendFileSync('/etc/hosts', `127.0.0.1 api.${process.env.PORTS_DOMAIN.split(':')[0]}\n`)
    const sandbox = await Sandbox.create({ timeoutMs: 120_000 })
    url(sandbox, 49983)
    assert.equal((await sandbox.commands.run('echo hello')).stdout, 'hello\n')
    assert.equal(await sandbox.kill(), true)
  },
}

await checks[process.argv[2]]()
process.exit(0)
