// Hyperbrowser's unmodified Node SDK against a real server. `node hyperbrowser.mjs NAME` runs one check; it throws when
// the promise does not hold.
import assert from 'node:assert/strict'
import { createRequire } from 'node:module'
import { Hyperbrowser, HyperbrowserError } from '@hyperbrowser/sdk'

const client = new Hyperbrowser({ baseUrl: process.env.HYPERBROWSER_BASE_URL })

async function until(condition, what, timeoutMs = 30_000) {
  for (const end = Date.now() + timeoutMs; !(await condition()); ) {
    if (Date.now() > end) throw new Error(`not in time: ${what}`)
    await new Promise((done) => setTimeout(done, 10))
  }
}

async function refused(promise, statusCode, code) {
  const error = await promise.then(
    () => assert.fail('not refused'),
    (error) => error
  )
  assert.ok(error instanceof HyperbrowserError, String(error))
  assert.equal(error.statusCode, statusCode, error.message)
  if (code) assert.equal(error.code, code)
  return error
}

const withSandbox = (check) => async () => {
  const sandbox = await client.sandboxes.create({ imageName: 'base' })
  try {
    await check(sandbox)
  } finally {
    await sandbox.stop()
  }
}

async function read(connection) {
  const chunks = []
  for await (const event of connection.events()) {
    if (event.type === 'exit') return { data: Buffer.concat(chunks), status: event.status }
    chunks.push(event.raw)
  }
  throw new Error(`the stream ended without its exit frame: ${Buffer.concat(chunks)}`)
}

async function collect(stream) {
  const events = []
  for await (const event of stream) events.push(event)
  return events
}

const checks = {
  async 'the package can be required and imported'() {
    const required = createRequire(import.meta.url)('@hyperbrowser/sdk')
    assert.equal(required, required.default)
    assert.equal(required.HyperbrowserClient, Hyperbrowser)
  },

  async 'sandboxes are created, found, listed and stopped'() {
    const params = { imageName: 'base', cpu: 1, memoryMiB: 512, diskMiB: 2048, timeoutMinutes: 9, region: 'us-east' }
    const sandbox = await client.sandboxes.create(params)
    assert.deepEqual(
      [sandbox.status, sandbox.cpu, sandbox.memoryMiB, sandbox.diskMiB, sandbox.timeoutMinutes, sandbox.region],
      ['active', 1, 512, 2048, 9, 'us-east']
    )
    assert.match(sandbox.runtime.baseUrl, new RegExp(`/sandbox/${sandbox.id}$`))
    assert.ok(sandbox.tokenExpiresAt && sandbox.sessionUrl && sandbox.network && sandbox.exposedPorts)
    assert.equal((await client.sandboxes.get(sandbox.id)).id, sandbox.id)
    assert.equal((await client.sandboxes.connect(sandbox.id)).id, sandbox.id)
    assert.equal((await client.sandboxes.getDetail(sandbox.id)).status, 'active')
    assert.equal(client.sandboxes.attach(await client.sandboxes.getDetail(sandbox.id)).id, sandbox.id)
    assert.equal((await sandbox.info()).id, sandbox.id)
    assert.equal((await (await sandbox.refresh()).connect()).toJSON().id, sandbox.id)
    const listed = await client.sandboxes.list({ search: sandbox.id })
    assert.deepEqual(listed.sandboxes.map((item) => item.id), [sandbox.id])
    assert.equal((await client.sandboxes.stop(sandbox.id)).success, true)
    assert.equal((await client.sandboxes.getDetail(sandbox.id)).token, null)
    await refused(client.sandboxes.connect(sandbox.id), 409, 'sandbox_not_running')
    await refused(client.sandboxes.get('nobody'), 404, 'not_found')
    await refused(client.sandboxes.create({ imageName: 'nothing' }), 404)
    await refused(client.sandboxes.createImageBuild({ imageName: 'x' }), 501, 'unsupported')
    await refused(client.sandboxes.getImageBuild('x'), 501)
    await refused(client.sandboxes.listImageBuilds(), 501)
    await refused(client.sandboxes.completeImageBuild('x', {}), 501)
    await refused(client.sandboxes.cancelImageBuild('x'), 501)
    await refused(client.sandboxes.deleteImage('base'), 403)
    assert.ok((await client.sandboxes.listImages()).images.some((image) => image.imageName === 'node'))
  },

  'ports and snapshots': withSandbox(async (sandbox) => {
    const exposed = await sandbox.expose({ port: 3000, auth: true })
    assert.equal(exposed.url, sandbox.getExposedUrl(3000))
    assert.ok(exposed.browserUrl)
    assert.equal((await sandbox.unexpose(3000)).exposed, false)
    assert.equal((await client.sandboxes.expose(sandbox.id, { port: 3001 })).auth, false)
    assert.equal((await client.sandboxes.unexpose(sandbox.id, 3001)).exposed, false)
    await sandbox.files.writeText('/home/user/kept.txt', 'kept')
    const made = await sandbox.createMemorySnapshot({ snapshotName: `node-${Date.now()}` })
    const second = await client.sandboxes.create({ snapshotName: made.snapshotName, snapshotId: made.snapshotId })
    assert.equal(await second.files.readText('/home/user/kept.txt'), 'kept')
    await second.stop()
    assert.equal((await client.sandboxes.getSnapshot(made.snapshotName)).id, made.snapshotId)
    assert.ok((await client.sandboxes.listSnapshots()).snapshots.some((item) => item.id === made.snapshotId))
    assert.equal((await client.sandboxes.deleteSnapshot(made.snapshotName)).deleted, true)
    assert.ok((await client.sandboxes.createMemorySnapshot(sandbox.id)).snapshotId)
  }),

  'terminals: everything that is said is heard': withSandbox(async (sandbox) => {
    assert.equal(sandbox.pty, sandbox.terminal)
    for (let round = 0; round < 20; round++) {
      const terminal = await sandbox.terminal.create({ command: 'bash', args: ['-c', `echo said-${round}`] })
      const { data, status } = await read(await terminal.attach())
      assert.equal(data.toString(), `said-${round}\r\n`)
      assert.equal(status.exitCode, 0)
    }
  }),

  'terminals: typed into, resized, waited for, signalled': withSandbox(async (sandbox) => {
    const terminal = await sandbox.terminal.create({ command: 'bash', args: ['-l'], rows: 20, cols: 70 })
    const connection = await terminal.attach()
    await connection.resize(33, 99)
    assert.equal((await terminal.refresh()).current.rows, 33)
    await connection.write('stty size; echo typed-$((1+1)) é€😀\n')
    await connection.write(Buffer.from('exit 5\n'))
    const { data, status } = await read(connection)
    await connection.close()
    assert.match(data.toString(), /33 99\r\ntyped-2 é€😀\r\n/)
    assert.equal(status.exitCode, 5)
    const again = await sandbox.terminal.get(terminal.id, true)
    assert.equal(Buffer.concat(again.current.output.map((chunk) => chunk.raw)).compare(data), 0)
    assert.equal((await sandbox.terminal.get(terminal.id)).current.output, undefined)
    assert.equal((await terminal.wait({ timeoutMs: 1000, includeOutput: true })).exitCode, 5)
    assert.equal((await read(await terminal.attach(10))).data.compare(data.subarray(10)), 0)
    assert.equal(terminal.toJSON().id, terminal.id)

    const sleeper = await sandbox.terminal.create({ command: 'sleep', args: ['1000'] })
    await refused(sleeper.wait({ timeoutMs: 50 }), 408)
    assert.equal((await sleeper.resize(40, 90)).cols, 90)
    await sleeper.signal('TERM')
    assert.equal((await sleeper.wait({ timeoutMs: 20_000 })).exitCode, 143)
    const killed = await sandbox.terminal.create({ command: 'bash', args: ['-l'] })
    assert.equal((await killed.kill()).running, false)
    await refused(sandbox.terminal.get('pty_missing'), 404)
    const big = await sandbox.terminal.create({ command: 'head', args: ['-c', '12000000', '/dev/zero'] })
    await big.wait({ timeoutMs: 25_000 })
    await refused(big.attach(0), 410, 'replay_window_expired')
  }),

  'terminals: closed at once, everything is still typed': withSandbox(async (sandbox) => {
    const terminal = await sandbox.terminal.create({ command: 'bash', args: ['-l'] })
    const connection = await terminal.attach()
    for (let line = 0; line < 100; line++) void connection.write(`echo ${line} >> /tmp/lines\n`)
    await connection.write('exit 6\n')
    await connection.close()
    assert.equal((await terminal.wait({ timeoutMs: 20_000 })).exitCode, 6)
    assert.equal((await sandbox.exec('wc -l < /tmp/lines')).stdout.trim(), '100')
  }),

  'processes': withSandbox(async (sandbox) => {
    const result = await sandbox.exec('echo out é€😀; echo err >&2; exit 7')
    assert.deepEqual([result.exitCode, result.stdout, result.stderr], [7, 'out é€😀\n', 'err\n'])
    assert.equal((await sandbox.processes.exec({ command: 'pwd', cwd: '/tmp' })).stdout, '/tmp\n')
    assert.equal((await sandbox.exec('id -un', { runAs: 'root' })).stdout, 'root\n')
    assert.equal((await sandbox.exec('sleep 1000', { timeoutMs: 200 })).status, 'timed_out')
    assert.equal((await sandbox.exec('head -c 20000000 /dev/zero | tr "\\0" x')).stdout.length, 20_000_000)

    const process_ = await sandbox.processes.start('read line; echo got:$line; echo oops >&2')
    assert.equal((await sandbox.getProcess(process_.id)).id, process_.id)
    await process_.writeStdin('ty')
    await process_.writeStdin({ data: 'ped\n', eof: true })
    const events = await collect(process_.stream())
    assert.deepEqual(events.map((event) => event.type), ['stdout', 'stderr', 'exit'])
    assert.deepEqual(events.slice(0, 2).map((event) => event.seq), [1, 2])
    assert.deepEqual([events[2].result.stdout, events[2].result.stderr], ['got:typed\n', 'oops\n'])
    assert.deepEqual((await collect(process_.stream(2))).map((event) => event.type), ['stderr', 'exit'])
    assert.equal((await process_.result()).stdout, 'got:typed\n')
    assert.equal((await process_.refresh()).toJSON().status, 'exited')
    await refused(process_.writeStdin('late'), 409)

    const sleeper = await sandbox.processes.start({ command: 'sleep 1000' })
    await refused(sleeper.wait({ timeoutMs: 50 }), 408)
    assert.deepEqual((await sandbox.processes.list({ status: ['running'], limit: 1 })).data.map((p) => p.id), [sleeper.id])
    await sleeper.signal('TERM')
    assert.equal((await sleeper.wait()).exitCode, 143)
    assert.equal((await (await sandbox.processes.start('sleep 1000')).kill()).status, 'killed')
    const noisy = await sandbox.processes.start('seq -f %063.0f 100000')
    assert.equal((await noisy.result()).stdout.length, 6_400_000)
    await refused(collect(noisy.stream(1)), 410, 'replay_window_expired')
    await refused(sandbox.processes.get('proc_missing'), 404)
  }),

  'files': withSandbox(async (sandbox) => {
    const { files } = sandbox
    assert.equal(await files.exists('/tmp/d/a'), false)
    assert.equal(await files.makeDir('/tmp/d'), true)
    assert.equal((await files.write('/tmp/d/a', 'héllo')).name, 'a')
    assert.deepEqual((await files.write([{ path: '/tmp/d/b', data: 'b' }, { path: '/tmp/d/c', data: Buffer.from([0, 255]) }])).map((f) => f.name), ['b', 'c'])
    await files.writeText('/tmp/d/a', '!', { append: true, mode: '0600' })
    await files.writeBytes('/tmp/d/e', Buffer.from([1]), { mode: '0640' })
    assert.equal(await files.read('/tmp/d/a'), 'héllo!')
    assert.equal(await files.readText('/tmp/d/a'), 'héllo!')
    assert.deepEqual([...(await files.readBytes('/tmp/d/c'))], [0, 255])
    assert.equal((await files.getInfo('/tmp/d/a')).mode, 0o600)
    assert.deepEqual((await files.list('/tmp/d', { depth: 1 })).map((f) => f.name), ['a', 'b', 'c', 'e'])
    assert.equal((await files.upload('/tmp/d/up', Buffer.alloc(3_000_000, 7))).bytesWritten, 3_000_000)
    assert.equal((await files.download('/tmp/d/up')).length, 3_000_000)
    assert.equal((await files.rename('/tmp/d/up', '/tmp/d/up2')).path, '/tmp/d/up2')
    assert.equal((await files.copy({ source: '/tmp/d/b', destination: '/tmp/d/b2' })).name, 'b2')
    await files.chmod({ path: '/tmp/d/b2', mode: '0600' })
    await files.withRunAs('root').chown({ path: '/tmp/d/b2', uid: 0, gid: 0 })
    assert.equal((await files.getInfo('/tmp/d/b2')).owner, 'root')
    await files.remove('/tmp/d/b')
    await files.remove('/tmp/d/never')
    const seen = []
    const handle = await files.watchDir('/tmp/d', (event) => seen.push(`${event.type} ${event.name}`))
    await files.writeText('/tmp/d/new', 'x')
    await until(() => seen.includes('create new') && seen.includes('write new'), 'the events')
    await handle.stop()
    const upload = await files.uploadUrl('/tmp/d/signed', { oneTime: true })
    assert.equal((await fetch(upload.url, { method: upload.method, body: 'signed' })).status, 200)
    assert.equal((await fetch(upload.url, { method: upload.method, body: 'signed' })).status, 401)
    const download = await files.downloadUrl('/tmp/d/signed')
    assert.equal(await (await fetch(download.url)).text(), 'signed')
    await refused(files.readText('/tmp/d/missing'), 404)
    await refused(files.watchDir('/tmp/d/a', () => {}), 400)
  }),

  'networks and keys': withSandbox(async (sandbox) => {
    await refused(sandbox.updateNetwork({ allowOut: ['no sense at all'] }), 400)
    assert.equal((await sandbox.updateNetwork({ allowInternetAccess: false })).network.allowInternetAccess, false)
    assert.deepEqual((await sandbox.clearNetwork()).network, { allowInternetAccess: true, allowOut: [], denyOut: [] })
    assert.deepEqual((await client.sandboxes.updateNetwork(sandbox.id, { denyOut: ['10.0.0.0/8'] })).network.denyOut, ['10.0.0.0/8'])
    const keyless = new Hyperbrowser({ apiKey: 'wrong', baseUrl: process.env.HYPERBROWSER_BASE_URL })
    await refused(keyless.sandboxes.list(), 401, 'unauthenticated')
  }),
}

await checks[process.argv[2]]()
