// Pause, resume, snapshots and forks through E2B's unmodified JavaScript SDK. `node lifecycle.mjs NAME` runs one check;
// it throws when the promise does not hold.
import assert from 'node:assert/strict'
import { Sandbox, SandboxError, SandboxNotFoundError } from 'e2b'

const BOOT_ID = 'cat /proc/sys/kernel/random/boot_id'
const said = async (sandbox, command) => (await sandbox.commands.run(command)).stdout.trim()
const state = async (sandbox) => (await sandbox.getInfo()).state

async function until(condition, what, timeoutMs = 30_000) {
  for (const end = Date.now() + timeoutMs; !(await condition()); ) {
    if (Date.now() > end) throw new Error(`not in time: ${what}`)
    await new Promise((done) => setTimeout(done, 20))
  }
}

async function all(paginator) {
  const found = []
  while (paginator.hasNext) found.push(...(await paginator.nextItems()))
  return found.map((item) => item.snapshotId)
}

const withSandbox = (check, options = {}) => async () => {
  const sandbox = await Sandbox.create({ timeoutMs: 120_000, ...options })
  try {
    await check(sandbox)
  } finally {
    await sandbox.kill()
  }
}

const checks = {
  'a pause keeps processes, environment and boot id': withSandbox(
    async (sandbox) => {
      const boot = await said(sandbox, BOOT_ID)
      const sleeper = await sandbox.commands.run('sleep 3600', { background: true })
      await sandbox.commands.run('sleep 1 && echo done > ~/later', { background: true })
      assert.equal(await sandbox.pause(), true)
      assert.equal(await sandbox.pause(), false)
      assert.equal(await sandbox.isRunning(), false)
      assert.equal(await state(sandbox), 'paused')
      assert.equal((await sandbox.connect()).sandboxId, sandbox.sandboxId)
      assert.equal(await sandbox.isRunning(), true)
      assert.equal(await said(sandbox, BOOT_ID), boot)
      assert.equal(await said(sandbox, 'echo $MINE'), 'stays')
      assert.ok((await sandbox.commands.list()).some((process) => process.pid === sleeper.pid))
      assert.equal((await sandbox.commands.connect(sleeper.pid)).pid, sleeper.pid)
      await until(async () => (await said(sandbox, 'cat ~/later || true')) === 'done', 'the job that was paused')
    },
    { envs: { MINE: 'stays' } }
  ),

  'a pause without memory keeps the files': withSandbox(async (sandbox) => {
    const boot = await said(sandbox, `echo kept > ~/file; ${BOOT_ID}`)
    await sandbox.pause({ keepMemory: false })
    assert.equal(await sandbox.isRunning(), false)
    await sandbox.connect()
    assert.equal(await said(sandbox, 'cat ~/file'), 'kept')
    assert.notEqual(await said(sandbox, BOOT_ID), boot)
  }),

  'a sandbox pauses at its timeout and is woken by traffic': withSandbox(
    async (sandbox) => {
      const boot = await said(sandbox, BOOT_ID)
      await sandbox.setTimeout(0)
      await until(async () => (await state(sandbox)) === 'paused', 'the pause')
      assert.equal(await sandbox.isRunning(), false)
      assert.equal(await said(sandbox, BOOT_ID), boot)
      assert.equal(await state(sandbox), 'running')
    },
    { lifecycle: { onTimeout: 'pause', autoResume: true } }
  ),

  'connect never shortens a life': withSandbox(async (sandbox) => {
    const before = (await sandbox.getInfo()).endAt.getTime()
    await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 10_000 })
    assert.equal((await sandbox.getInfo()).endAt.getTime(), before)
    await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 600_000 })
    assert.ok((await sandbox.getInfo()).endAt.getTime() > before)
  }),

  'snapshots are made, listed, used and deleted': withSandbox(async (sandbox) => {
    await said(sandbox, 'echo original > ~/file')
    const name = `js-${sandbox.sandboxId}`
    const snapshot = await sandbox.createSnapshot({ name })
    assert.ok(snapshot.names.some((each) => each.includes(name)))
    const other = await Sandbox.createSnapshot(sandbox.sandboxId)
    assert.deepEqual(await all(Sandbox.listSnapshots({ name })), [snapshot.snapshotId])
    assert.deepEqual(await all(Sandbox.listSnapshots({ name: `${name}-not` })), [])
    assert.deepEqual(
      new Set(await all(Sandbox.listSnapshots({ sandboxId: sandbox.sandboxId, limit: 1 }))),
      new Set([snapshot.snapshotId, other.snapshotId])
    )
    const children = await Promise.all(
      [snapshot.snapshotId, name].map((from) => Sandbox.create(from, { timeoutMs: 60_000 }))
    )
    await said(children[0], 'echo mine > ~/file')
    assert.equal(await said(children[1], 'cat ~/file'), 'original')
    assert.equal(await sandbox.isRunning(), true)
    for (const child of children) await child.kill()
    assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), true)
    assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), false)
    assert.equal(await Sandbox.deleteSnapshot(other.snapshotId), true)
  }),

  'forks are independent': withSandbox(async (sandbox) => {
    await said(sandbox, 'echo before > ~/file')
    const forks = await sandbox.fork({ count: 2, timeoutMs: 60_000 })
    assert.equal(new Set([sandbox.sandboxId, ...forks.map((fork) => fork.sandboxId)]).size, 3)
    await said(forks[0], 'echo after > ~/file')
    assert.equal(await said(forks[1], 'cat ~/file'), 'before')
    assert.equal(await said(sandbox, 'cat ~/file'), 'before')
    for (const fork of forks) await fork.kill()
    const [byId] = await Sandbox.fork(sandbox.sandboxId)
    assert.equal(await byId.isRunning(), true)
    await byId.kill()
    await assert.rejects(byId.fork(), SandboxNotFoundError)
    await assert.rejects(Sandbox.fork(sandbox.sandboxId, { count: 0 }), SandboxError)
  }),
}

const name = process.argv[2]
await checks[name]()
