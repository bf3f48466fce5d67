// E2B's unmodified JavaScript SDK against a real server. `node checks.mjs NAME` runs one check; it throws when the
// promise does not hold.
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import {
  AuthenticationError,
  CommandExitError,
  FileNotFoundError,
  FilesystemEventType,
  FileType,
  InvalidArgumentError,
  NotEnoughSpaceError,
  NotFoundError,
  Sandbox,
  SandboxError,
  SandboxNotFoundError,
  TimeoutError,
} from 'e2b'
import { Sandbox as CodeSandbox } from '@e2b/code-interpreter'

const encode = (text) => new TextEncoder().encode(text)
const UNKNOWN = 'i00000000000000000000'

async function until(condition, what, timeoutMs = 10_000) {
  for (const end = Date.now() + timeoutMs; !(await condition()); ) {
    if (Date.now() > end) throw new Error(`not in time: ${what}`)
    await new Promise((done) => setTimeout(done, 10))
  }
}

class Screen {
  text = ''
  onData = (data) => {
    this.text += new TextDecoder().decode(data)
  }
  said = (marker) => until(() => this.text.includes(marker), `${marker} in ${JSON.stringify(this.text)}`)
}

async function listed(query) {
  const found = []
  for (const pages = Sandbox.list({ query }); pages.hasNext; ) found.push(...(await pages.nextItems()))
  return found.map((item) => item.sandboxId)
}

const withSandbox = (check) => async () => {
  const sandbox = await Sandbox.create({ timeoutMs: 120_000 })
  try {
    await check(sandbox)
  } finally {
    await sandbox.kill()
  }
}

const checks = {
  async 'a sandbox is created, found, connected to and killed'() {
    const metadata = { 'a b': `c&d=${Math.random()}é` }
    const sandbox = await Sandbox.create('base', { metadata, envs: { FROM: 'create' }, timeoutMs: 60_000 })
    assert.match(sandbox.sandboxId, /^i[a-z0-9]{20}$/)
    assert.equal(await sandbox.isRunning(), true)
    assert.deepEqual(await listed({ metadata }), [sandbox.sandboxId])
    assert.deepEqual(await listed({ metadata, state: ['paused'] }), [])
    const info = await sandbox.getInfo()
    assert.deepEqual(info.metadata, metadata)
    assert.equal(info.state, 'running')
    const other = await Sandbox.connect(sandbox.sandboxId)
    assert.equal((await other.commands.run('echo $FROM')).stdout, 'create\n')
    assert.equal(await sandbox.kill(), true)
    assert.equal(await sandbox.kill(), false)
    assert.equal(await sandbox.isRunning(), false)
    assert.deepEqual(await listed({ metadata }), [])
  },

  async 'lists come page by page'() {
    const metadata = { mark: String(Math.random()) }
    const made = []
    for (let i = 0; i < 3; i++) made.push(await Sandbox.create({ metadata, timeoutMs: 60_000 }))
    const pages = Sandbox.list({ query: { metadata }, limit: 1 })
    const seen = []
    while (pages.hasNext) seen.push((await pages.nextItems()).map((item) => item.sandboxId))
    assert.deepEqual(seen, made.map((item) => [item.sandboxId]).reverse())
    await Promise.all(made.map((item) => item.kill()))
  },

  'a timeout is set, and zero ends the sandbox': withSandbox(async (sandbox) => {
    await sandbox.setTimeout(30_000)
    const left = (await sandbox.getInfo()).endAt.getTime() - Date.now()
    assert.ok(left > 20_000 && left < 31_000, String(left))
    await sandbox.setTimeout(0)
    await until(async () => !(await sandbox.isRunning()), 'it ends')
  }),

  'a paused sandbox comes back with its processes': withSandbox(async (sandbox) => {
    const command = await sandbox.commands.run('sleep 600', { background: true, timeoutMs: 0 })
    const cut = command.wait().catch((error) => error)
    await sandbox.pause()
    assert.equal(await sandbox.isRunning(), false)
    assert.ok((await cut) instanceof Error)
    assert.equal((await sandbox.getInfo()).state, 'paused')
    await sandbox.connect()
    assert.deepEqual((await sandbox.commands.list()).map((item) => item.pid), [command.pid])
  }),

  'a code interpreter sandbox runs commands': async () => {
    const sandbox = await CodeSandbox.create()
    assert.equal((await sandbox.commands.run('echo code')).stdout, 'code\n')
    await sandbox.kill()
  },

  'a terminal is created, typed into, resized, left and found again': withSandbox(async (sandbox) => {
    const first = new Screen()
    const terminal = await sandbox.pty.create({ cols: 100, rows: 30, envs: { ABC: '1' }, cwd: '/', timeoutMs: 0, onData: first.onData })
    await sandbox.pty.sendInput(terminal.pid, encode('stty -echo; echo [$(stty size)] $ABC $PWD $TERM\n'))
    await first.said('[30 100] 1 / xterm-256color')
    await sandbox.pty.resize(terminal.pid, { cols: 120, rows: 40 })
    await sandbox.pty.sendInput(terminal.pid, encode('echo [$(stty size)]\n'))
    await first.said('[40 120]')
    await terminal.disconnect()
    await sandbox.pty.sendInput(terminal.pid, encode("echo while''away\n"))
    const second = new Screen()
    const again = await sandbox.pty.connect(terminal.pid, { onData: second.onData, timeoutMs: 0 })
    await second.said('whileaway')
    assert.ok(!second.text.includes('[40 120]'), 'nothing is said twice')
    await sandbox.pty.sendInput(terminal.pid, encode('exit 0\n'))
    assert.equal((await again.wait()).exitCode, 0)
  }),

  'killing a terminal ends it, and only once': withSandbox(async (sandbox) => {
    const terminal = await sandbox.pty.create({ cols: 80, rows: 24, onData: () => {} })
    assert.equal(await sandbox.pty.kill(terminal.pid), true)
    assert.equal(await sandbox.pty.kill(terminal.pid), false)
    await assert.rejects(terminal.wait(), (error) => error instanceof CommandExitError && error.exitCode === -1)
    await assert.rejects(sandbox.commands.run(`kill -0 ${terminal.pid}`), CommandExitError)
  }),

  'a terminal ends at its timeout': withSandbox(async (sandbox) => {
    const terminal = await sandbox.pty.create({ cols: 80, rows: 24, onData: () => {}, timeoutMs: 1000 })
    await assert.rejects(terminal.wait(), TimeoutError)
    await until(async () => (await sandbox.commands.list()).length === 0, 'the shell is gone')
  }),

  'a command has output, exit code, environment, cwd and user': withSandbox(async (sandbox) => {
    const result = await sandbox.commands.run('echo $K; pwd; id -un; echo err >&2', { envs: { K: 'v' }, cwd: '/tmp', user: 'root' })
    assert.deepEqual([result.stdout, result.stderr, result.exitCode], ['v\n/tmp\nroot\n', 'err\n', 0])
    await assert.rejects(
      sandbox.commands.run('echo out; exit 3'),
      (error) => error instanceof CommandExitError && error.exitCode === 3 && error.stdout === 'out\n'
    )
  }),

  'background commands are listed, connected to and killed': withSandbox(async (sandbox) => {
    const one = await sandbox.commands.run('echo one; sleep 300', { background: true })
    const two = await sandbox.commands.run('sleep 301', { background: true })
    const [first, second] = await sandbox.commands.list()
    assert.deepEqual([first.pid, second.pid, first.cmd], [one.pid, two.pid, '/bin/bash'])
    assert.deepEqual(first.args, ['-l', '-c', 'echo one; sleep 300'])
    assert.equal((await sandbox.commands.connect(two.pid)).pid, two.pid)
    assert.equal(await one.kill(), true)
    assert.equal(await sandbox.commands.kill(two.pid), true)
    assert.equal(await sandbox.commands.kill(two.pid), false)
    assert.deepEqual(await sandbox.commands.list(), [])
  }),

  'a command reads stdin, also an empty one, until it is closed': withSandbox(async (sandbox) => {
    const command = await sandbox.commands.run('cat', { background: true, stdin: true })
    await sandbox.commands.sendStdin(command.pid, '')
    await sandbox.commands.sendStdin(command.pid, 'héllo ')
    await sandbox.commands.sendStdin(command.pid, 'world')
    await sandbox.commands.closeStdin(command.pid)
    assert.equal((await command.wait()).stdout, 'héllo world')
  }),

  'a command is killed at its timeout': withSandbox(async (sandbox) => {
    await assert.rejects(sandbox.commands.run('sleep 300', { timeoutMs: 1000 }), TimeoutError)
    await until(async () => (await sandbox.commands.list()).length === 0, 'it is gone')
  }),

  'ten megabytes arrive whole': withSandbox(async (sandbox) => {
    const { stdout } = await sandbox.commands.run('seq 1 1300000')
    const lines = stdout.split('\n')
    assert.equal(lines.length, 1300001)
    assert.ok(lines.every((line, at) => line === (at < 1300000 ? String(at + 1) : '')))
  }),

  'a sandbox killed during a command is said to be gone': withSandbox(async (sandbox) => {
    const command = await sandbox.commands.run('sleep 300', { background: true, timeoutMs: 0 })
    const ended = assert.rejects(command.wait(), (error) => error instanceof TimeoutError && /sandbox/i.test(error.message))
    await sandbox.kill()
    await ended
    await assert.rejects(sandbox.commands.run('true'), (error) => error instanceof TimeoutError || error instanceof SandboxNotFoundError)
  }),

  'files are written and read, whole and as streams': withSandbox(async (sandbox) => {
    const data = randomBytes(3_000_000)
    for (const gzip of [false, true]) {
      const info = await sandbox.files.write('a/b ü.bin', data.buffer.slice(data.byteOffset, data.byteOffset + data.length), { gzip })
      assert.equal(info.path, '/home/user/a/b ü.bin')
      assert.deepEqual(Buffer.from(await sandbox.files.read('a/b ü.bin', { format: 'bytes', gzip })), data)
      const pieces = []
      for await (const piece of await sandbox.files.read('a/b ü.bin', { format: 'stream', gzip })) pieces.push(piece)
      assert.deepEqual(Buffer.concat(pieces), data)
    }
    await sandbox.files.write('streamed', new Blob(['one', 'two']).stream())
    assert.equal(await sandbox.files.read('streamed'), 'onetwo')
    const many = Array.from({ length: 10 }, (_, i) => ({ path: `many/${i}`, data: `${i}` }))
    assert.deepEqual((await sandbox.files.write(many)).map((info) => info.path), many.map((file) => `/home/user/${file.path}`))
    assert.deepEqual((await sandbox.files.list('many')).map((entry) => entry.name), many.map((_, i) => `${i}`))
    assert.match(await sandbox.files.read('/proc/sys/kernel/random/boot_id'), /^[0-9a-f-]{36}\n$/)
  }),

  'entries, directories, moving and removing': withSandbox(async (sandbox) => {
    assert.equal(await sandbox.files.makeDir('d/e'), true)
    assert.equal(await sandbox.files.makeDir('d/e'), false)
    await sandbox.files.write('d/f', 'four', { metadata: { author: 'm' } })
    const entry = await sandbox.files.getInfo('d/f')
    assert.deepEqual([entry.name, entry.type, entry.size, entry.mode, entry.permissions, entry.owner], ['f', FileType.FILE, 4, 0o644, '-rw-r--r--', 'user'])
    assert.deepEqual(entry.metadata, { author: 'm' })
    assert.ok(entry.modifiedTime instanceof Date)
    assert.equal((await sandbox.files.rename('d/f', 'd/new/g')).path, '/home/user/d/new/g')
    assert.deepEqual((await sandbox.files.list('d', { depth: 3 })).map((item) => item.path.slice(11)), ['d/e', 'd/new', 'd/new/g'])
    await sandbox.files.remove('d')
    assert.equal(await sandbox.files.exists('d/e'), false)
    await assert.rejects(sandbox.files.read('d/f'), FileNotFoundError)
    await assert.rejects(sandbox.files.getInfo('d/f'), FileNotFoundError)
    await assert.rejects(sandbox.files.list('d'), FileNotFoundError)
    await assert.rejects(sandbox.files.read('/tmp'), InvalidArgumentError)
    await assert.rejects(sandbox.files.write('/dev/too-big', 'x'.repeat(20_000_000)), NotEnoughSpaceError)
  }),

  'a directory is watched, with what is made in it': withSandbox(async (sandbox) => {
    await sandbox.files.makeDir('d')
    const events = []
    const watch = await sandbox.files.watchDir('d', (event) => { events.push(event) }, { recursive: true, includeEntry: true })
    await sandbox.files.write('d/f', 'x')
    await until(() => events.length >= 3, 'three events', 30_000)
    assert.deepEqual(events.map((event) => [event.type, event.name]), [
      [FilesystemEventType.CREATE, 'f'],
      [FilesystemEventType.CHMOD, 'f'],
      [FilesystemEventType.WRITE, 'f'],
    ])
    assert.equal(events[0].entry.path, '/home/user/d/f')
    await sandbox.commands.run('mkdir -p d/a/b; echo x > d/a/b/c')
    await until(() => events.some((event) => event.name === 'a/b/c' && event.type === FilesystemEventType.WRITE), 'below', 30_000)
    await watch.stop()
    await assert.rejects(sandbox.files.watchDir('none', () => {}), FileNotFoundError)
    await assert.rejects(sandbox.files.watchDir('/etc/passwd', () => {}), InvalidArgumentError)
  }),

  'signed urls are enough to read and write one path': withSandbox(async (sandbox) => {
    const form = new FormData()
    form.append('file', new Blob(['through a url']), 'hello.txt')
    const up = await fetch(await sandbox.uploadUrl('/root/hello.txt', { user: 'root', useSignatureExpiration: 60 }), { method: 'POST', body: form })
    assert.deepEqual(await up.json(), [{ path: '/root/hello.txt', name: 'hello.txt', type: 'file' }])
    for (const opts of [{ user: 'root' }, {}, { useSignatureExpiration: 60 }]) {
      const down = await fetch(await sandbox.downloadUrl('/root/hello.txt', opts))
      assert.deepEqual([down.status, await down.text()], [200, 'through a url'])
    }
    const late = await fetch(await sandbox.downloadUrl('/root/hello.txt', { useSignatureExpiration: -60 }))
    assert.deepEqual([late.status, await late.json()], [401, { code: 401, message: 'signature is already expired' }])
    const other = await fetch((await sandbox.downloadUrl('/root/hello.txt')).replace('hello', 'other'))
    assert.deepEqual([other.status, await other.json()], [401, { code: 401, message: 'invalid signature' }])
  }),

  'errors are of the classes that tell what to do': withSandbox(async (sandbox) => {
    await assert.rejects(Sandbox.create({ apiKey: 'e2b_wrong' }), AuthenticationError)
    await assert.rejects(Sandbox.create('no-such-template'), (error) => error instanceof SandboxError && /no-such-template/.test(error.message))
    await assert.rejects(Sandbox.create({ timeoutMs: -1000 }), SandboxError)
    await assert.rejects(Sandbox.connect(UNKNOWN), SandboxNotFoundError)
    await assert.rejects(Sandbox.getInfo(UNKNOWN), SandboxNotFoundError)
    assert.equal(await Sandbox.kill(UNKNOWN), false)
    await assert.rejects(sandbox.commands.connect(999999), (error) => error instanceof NotFoundError && /process with pid 999999 not found/.test(error.message))
    await assert.rejects(sandbox.pty.sendInput(999999, encode('x')), NotFoundError)
    await assert.rejects(sandbox.pty.resize(999999, { cols: 80, rows: 24 }), NotFoundError)
    await assert.rejects(sandbox.commands.run('true', { cwd: '/nowhere' }), (error) => error instanceof InvalidArgumentError && /cwd '\/nowhere' does not exist/.test(error.message))
    await assert.rejects(sandbox.commands.run('true', { user: 'nobody-here' }), (error) => error instanceof AuthenticationError && /nobody-here/.test(error.message))
  }),
}

if (process.argv[2] === '--list') console.log(JSON.stringify(Object.keys(checks)))
else await checks[process.argv[2]]()
