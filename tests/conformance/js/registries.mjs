// Templates from a registry that wants to know who asks, by E2B's unmodified JavaScript SDK.
// `node registries.mjs IMAGE AWS_KEY_ID`; account.json beside it is Google's key. It throws when a promise does
// not hold.
import assert from 'node:assert/strict'
import { BuildError, Sandbox, Template } from 'e2b'

const [image, accessKeyId] = process.argv.slice(2)
const aws = { secretAccessKey: 's', region: 'us-east-1' }
const ways = [
  Template({ fileContextPath: import.meta.dirname }).fromGCPRegistry(image, { serviceAccountJSON: 'account.json' }),
  Template().fromAWSRegistry(image, { accessKeyId, ...aws }),
]
for (const [number, base] of ways.entries()) {
  await Template.build(base.runCmd(`echo js ${number} > built`), `js-private-${number}`)
}
const sandbox = await Sandbox.create('js-private-1')
assert.equal((await sandbox.commands.run('cat built')).stdout, 'js 1\n')
await sandbox.kill()
const wrong = Template().fromAWSRegistry(image, { accessKeyId: 'AKIDOTHER', ...aws })
await assert.rejects(Template.build(wrong, 'js-private-not'), (error) => {
  assert.ok(error instanceof BuildError)
  assert.match(error.message, /UnrecognizedClientException/)
  return true
})
