// E2B's unmodified JavaScript code interpreter SDK against a real server: all checks in one sandbox.
// `node interpreter.mjs` prints the name of each check that holds, and throws at the first that does not.
import assert from 'node:assert/strict'
import { NotFoundError, Sandbox, SandboxError, TimeoutError } from '@e2b/code-interpreter'

const checks = {
  async 'variables live from run to run'(sandbox) {
    await sandbox.runCode('x = 1')
    const execution = await sandbox.runCode('x += 1; x')
    assert.equal(execution.text, '2')
    assert.equal(execution.executionCount, 2)
    assert.equal(execution.error, undefined)
  },

  async 'output results and errors are told while the code runs'(sandbox) {
    const heard = []
    const execution = await sandbox.runCode(
      "import sys\nprint('a')\nprint('b', file=sys.stderr)\ndisplay({'text/html': '<b>'}, raw=True)\n1/0",
      {
        onStdout: (message) => heard.push(`out ${message.line}`),
        onStderr: (message) => heard.push(`err ${message.line}`),
        onResult: (result) => heard.push(`result ${result.html}`),
        onError: (error) => heard.push(`error ${error.name}`),
      }
    )
    assert.deepEqual(heard, ['out a\n', 'err b\n', 'result <b>', 'error ZeroDivisionError'])
    assert.equal(execution.error.value, 'division by zero')
    assert.match(execution.error.traceback, /1\/0/)
  },

  async 'a figure is a picture and a chart'(sandbox) {
    const execution = await sandbox.runCode(
      "import matplotlib.pyplot as plt\nplt.bar(['a', 'b'], [1, 2])\nplt.title('T')\nplt.show()"
    )
    const [result] = execution.results
    assert.ok(result.png.length > 1000)
    assert.equal(result.chart.type, 'bar')
    assert.equal(result.chart.title, 'T')
    assert.deepEqual(result.chart.elements.map((bar) => bar.label), ['a', 'b'])
  },

  async 'not a number and infinity do not break the stream'(sandbox) {
    const execution = await sandbox.runCode(
      "import pandas as pd\ndisplay({'application/json': {'a': None}}, raw=True)\npd.DataFrame({'a': [float('nan'), 1.5]})"
    )
    assert.equal(execution.error, undefined)
    assert.deepEqual(execution.results.at(-1).data, { a: [null, 1.5] })
  },

  async 'contexts are created listed restarted and removed'(sandbox) {
    const context = await sandbox.createCodeContext({ cwd: '/tmp', language: 'python' })
    assert.deepEqual({ ...context, id: '' }, { id: '', cwd: '/tmp', language: 'python' })
    await sandbox.runCode('y = 1', { context })
    assert.equal((await sandbox.runCode('import os; os.getcwd()', { context })).text, '/tmp')
    assert.ok((await sandbox.listCodeContexts()).some((each) => each.id === context.id))
    await sandbox.restartCodeContext(context)
    assert.equal((await sandbox.runCode('y', { context })).error.name, 'NameError')
    await sandbox.removeCodeContext(context)
    await assert.rejects(sandbox.runCode('1', { context }), NotFoundError)
  },

  async 'environment variables are of one run'(sandbox) {
    const read = "import os; os.environ.get('OF_THE_RUN')"
    assert.equal((await sandbox.runCode(read, { envs: { OF_THE_RUN: 'yes' } })).text, 'yes')
    assert.equal((await sandbox.runCode(read)).text, undefined)
  },

  async 'other languages run and those that are not there are named'(sandbox) {
    assert.equal((await sandbox.runCode('const a: number = 2; a * 21', { language: 'typescript' })).text, '42')
    assert.deepEqual((await sandbox.runCode('echo hi', { language: 'bash' })).logs.stdout, ['hi\n'])
    await assert.rejects(sandbox.runCode('1', { language: 'r' }), (error) => {
      assert.ok(error instanceof SandboxError)
      assert.match(error.message, /no kernel for language 'r'.*bash, javascript, python, typescript/)
      return true
    })
  },

  async 'a timeout leaves a kernel that works'(sandbox) {
    await sandbox.runCode('z = 7')
    await assert.rejects(sandbox.runCode('while True: pass', { timeoutMs: 1000 }), TimeoutError)
    assert.equal((await sandbox.runCode('z', { timeoutMs: 60_000 })).text, '7')
  },
}

const sandbox = await Sandbox.create({ timeoutMs: 300_000 })
try {
  for (const [name, check] of Object.entries(checks)) {
    await check(sandbox).catch((error) => {
      throw new Error(`${name}: ${error.stack}`)
    })
    console.log(name)
  }
} finally {
  await sandbox.kill()
}
process.exit(0) // the SDK's timers of refused requests would keep Node alive for a minute
