// Novita's unmodified JavaScript SDK against a real server. `node novita.mjs NAME` runs one check; it throws when the
// promise does not hold.
import assert from 'node:assert/strict'
import { CommandExitError, NotFoundError, Sandbox, SandboxError } from 'novita-sandbox/code-interpreter'

const UNKNOWN = 'i00000000000000000000'
const encode = (text) => new TextEncoder().encode(text)

const withSandbox = (check) => async () => {
  const sandbox = await Sandbox.create({ timeoutMs: 120_000 })
  try {
    await check(sandbox)
  } finally {
    await sandbox.kill()
  }
}

async function rejects(promise, kind) {
  await assert.rejects(promise, (error) => error instanceof kind || assert.fail(`${error?.constructor?.name}: ${error}`))
}

const checks = {
  async 'a sandbox is created, found, connected to and killed'() {
    const sandbox = await Sandbox.create({ metadata: { who: 'me' }, envs: { FROM: 'create' }, timeoutMs: 60_000 })
    assert.equal(await sandbox.isRunning(), true)
    assert.deepEqual((await sandbox.getInfo()).metadata, { who: 'me' })
    const listed = await Sandbox.list({ query: { metadata: { who: 'me' } } }).nextItems()
    assert.ok(listed.map((item) => item.sandboxId).includes(sandbox.sandboxId))
    const other = await Sandbox.connect(sandbox.sandboxId)
    assert.equal((await other.commands.run('echo $FROM')).stdout, 'create\n')
    assert.equal(await Sandbox.kill(sandbox.sandboxId), true)
    assert.equal(await Sandbox.kill(sandbox.sandboxId), false)
    assert.equal(await Sandbox.kill(UNKNOWN), false)
    assert.equal(await sandbox.isRunning(), false)
  },

  'commands and their errors': withSandbox(async (sandbox) => {
    const result = await sandbox.commands.run('echo out; echo err >&2')
    assert.deepEqual([result.stdout, result.stderr, result.exitCode], ['out\n', 'err\n', 0])
    await rejects(sandbox.commands.run('exit 3'), CommandExitError)
    const handle = await sandbox.commands.run('sleep 600', { background: true })
    assert.equal(await sandbox.commands.kill(handle.pid), true)
    assert.equal(await sandbox.commands.kill(handle.pid), false)
  }),

  'a terminal from its start to its end': withSandbox(async (sandbox) => {
    let text = ''
    const decoder = new TextDecoder('utf-8', { fatal: true })
    const onData = (data) => (text += decoder.decode(data))
    const terminal = await sandbox.pty.create({ cols: 80, rows: 24, onData, timeoutMs: 0 })
    await sandbox.pty.resize(terminal.pid, { cols: 120, rows: 40 })
    const typed = `stty size; for i in $(seq 999); do printf 'é€😀'; done; exit\n`
    await sandbox.pty.sendInput(terminal.pid, encode(typed))
    assert.equal((await terminal.wait()).exitCode, 0)
    assert.ok(text.includes('40 120'))
    assert.ok(text.split('é€😀').length > 999)
  }),

  'pause, connect and reset': withSandbox(async (sandbox) => {
    await sandbox.commands.run('echo kept > /home/user/kept')
    const handle = await sandbox.commands.run('sleep 600', { background: true })
    await sandbox.pause()
    assert.equal((await sandbox.getInfo()).state, 'paused')
    const again = await Sandbox.connect(sandbox.sandboxId)
    assert.ok((await again.commands.list()).some((process) => process.pid === handle.pid))
    assert.equal(await again.reset(), true)
    assert.equal((await again.commands.run('cat /home/user/kept')).stdout, 'kept\n')
    assert.ok(!(await again.commands.list()).some((process) => process.pid === handle.pid))
  }),

  'quota, events and metrics': withSandbox(async (sandbox) => {
    const quota = await Sandbox.getQuota()
    assert.ok(quota.usage.concurrentInstances >= 1)
    assert.ok(quota.limit.concurrentInstances > quota.usage.concurrentInstances)
    const events = await Sandbox.getEvents({ sandboxID: sandbox.sandboxId })
    assert.deepEqual(events.items.map((item) => item.eventName), ['create'])
    assert.equal(events.total, 1)
    assert.ok((await sandbox.getMetrics())[0].memUsed > 0)
  }),

  async 'what is not there is not found'() {
    await rejects(Sandbox.connect(UNKNOWN), NotFoundError)
    await rejects(Sandbox.create('nothing'), SandboxError)
  },
}

await checks[process.argv[2]]()
process.exit(0)
