// Templates built by E2B's unmodified JavaScript SDK. `node templates.mjs NAME` runs one check; it throws when the
// promise does not hold.
import assert from 'node:assert/strict'
import { mkdtempSync, mkdirSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { BuildError, Sandbox, Template, waitForPort } from 'e2b'

async function said(name, command) {
  const sandbox = await Sandbox.create(name, { timeoutMs: 120_000 })
  try {
    return (await sandbox.commands.run(command)).stdout.trim().split('\n')
  } finally {
    await sandbox.kill()
  }
}

const checks = {
  'steps of every kind, and a second build from the cache': async () => {
    const context = mkdtempSync(join(tmpdir(), 'sp-context-'))
    mkdirSync(join(context, 'app'))
    writeFileSync(join(context, 'app', 'main.js'), 'main')
    writeFileSync(join(context, 'one.txt'), 'one')
    const template = () =>
      Template({ fileContextPath: context })
        .fromBaseImage()
        .setEnvs({ WORD: 'hello' })
        .copy('app', 'app')
        .copyItems([{ src: 'one.txt', dest: '/srv/one', mode: 0o600, user: 'root' }])
        .makeDir('made', { mode: 0o750 })
        .makeSymlink('app/main.js', 'link')
        .rename('made', 'renamed')
        .remove('.profile')
        .runCmd(['echo $WORD > word', 'id -un > who'])
        .runCmd('id -un > /srv/who', { user: 'root' })
        .setWorkdir('/work')
        .setUser('worker')
        .runCmd('pwd > ~/where')
    const lines = []
    const built = await Template.build(template(), 'js-every', { onBuildLogs: (entry) => lines.push(entry.message) })
    assert.equal(await Template.exists('js-every'), true)
    const files = "cd /home/user; cat link app/main.js /srv/one; echo; cat word who /srv/who; stat -c %a renamed /srv/one; ls .profile"
    const got = await said('js-every', `pwd; id -un; cat ~/where`)
    assert.deepEqual(got, ['/work', 'worker', '/work'])
    const root = await Sandbox.create('js-every')
    const { stdout } = await root.commands.run(`${files} || true`, { user: 'root' })
    assert.deepEqual(stdout.trim().split('\n'), ['mainmainone', 'hello', 'user', 'root', '750', '600'])
    await root.kill()
    lines.length = 0
    const again = await Template.build(template(), 'js-every', { onBuildLogs: (entry) => lines.push(entry.message) })
    assert.equal(again.templateId, built.templateId)
    const steps = lines.filter((line) => / (RUN|COPY|USER|WORKDIR) /.test(line))
    assert.ok(steps.length >= 10 && steps.every((line) => line.startsWith('CACHED')), steps.join('\n'))
  },

  'bun, MCP servers and development containers by the programs of their templates': async () => {
    const script = (name) => `printf '#!/bin/sh\\necho ${name} "$*" >> /srv/said\\n' | sudo tee ${name} && sudo chmod +x ${name}`
    const programs = ['/usr/bin/mcp-gateway', '/usr/bin/devcontainer', '/usr/bin/bun', '/prepare-exec.sh'].map(script)
    const tools = Template().fromBaseImage().runCmd(['sudo install -m 666 /dev/null /srv/said', ...programs])
    await Promise.all(['mcp-gateway', 'devcontainer'].map((name) => Template.build(tools, name)))
    const gateway = Template().fromTemplate('mcp-gateway').addMcpServer(['exa', 'brave']).bunInstall(['a', 'b'], { g: true })
    const contained = Template().fromTemplate('devcontainer').betaDevContainerPrebuild('/w')
    await Promise.all([
      Template.build(gateway.bunInstall('c', { dev: true }), 'js-tools'),
      Template.build(contained.betaSetDevContainerStart('/w'), 'js-contained'),
    ])
    const asked = (await said('js-tools', 'cat /srv/said')).map((line) => line.replace('/usr/bin/', ''))
    assert.deepEqual(asked, ['mcp-gateway pull exa brave', 'bun install -g a b', 'bun install --dev c'])
    const up = (await said('js-contained', 'cat /srv/said; ls /devcontainer.*')).map((line) => line.replace('/usr/bin/', ''))
    const folder = '--workspace-folder /w'
    assert.deepEqual(up.slice(0, 2), [`devcontainer build ${folder}`, `devcontainer up ${folder}`])
    assert.deepEqual(up.slice(-3), ['/prepare-exec.sh /w', '/devcontainer.sh', '/devcontainer.up'])
  },

  'a start command, tags, a build in the background, a step that fails': async () => {
    const serving = Template()
      .fromBaseImage()
      .setWorkdir('/srv/www')
      .runCmd('echo served > index.html')
      .setStartCmd('python3 -m http.server 8000', waitForPort(8000))
    const info = await Template.buildInBackground(serving, 'js-serves:v1', { tags: ['best'], cpuCount: 1, memoryMB: 512 })
    assert.deepEqual(info.tags, ['v1', 'best'])
    let offset = 0
    let status
    do {
      status = await Template.getBuildStatus(info, { logsOffset: offset })
      offset += status.logEntries.length
      await new Promise((done) => setTimeout(done, 50))
    } while (status.status === 'building' || status.status === 'waiting')
    assert.equal(status.status, 'ready', JSON.stringify(status.reason))
    assert.deepEqual(await said('js-serves:best', 'curl -s localhost:8000'), ['served'])
    const assigned = await Template.assignTags('js-serves:v1', ['default', 'production'])
    assert.equal(assigned.buildId, info.buildId)
    await Template.removeTags('js-serves', 'best')
    const tags = (await Template.getTags('js-serves')).map((tag) => tag.tag).sort()
    assert.deepEqual(tags, ['default', 'production', 'v1'])
    const failing = Template().fromTemplate('js-serves').runCmd('echo words >&2; exit 9')
    await assert.rejects(Template.build(failing, 'js-fails'), (error) => {
      assert.ok(error instanceof BuildError)
      assert.match(error.message, /step 1 of 1[^]*exit code 9[^]*words/)
      return true
    })
  },
}

const name = process.argv[2]
try {
  await checks[name]()
} catch (error) {
  console.error(error.message) // a BuildError's stack is the line of the step, without the message
  throw error
}
