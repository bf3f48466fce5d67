// Volumes through the vendors' unmodified JavaScript SDKs. `node volumes.mjs NAME` runs one check; it throws when the
// promise does not hold.
import assert from 'node:assert/strict'
import { Sandbox, Volume, VolumeError, VolumePathNotFoundError } from 'e2b'
import { Hyperbrowser } from '@hyperbrowser/sdk'
import * as novita from 'novita-sandbox'

const newName = () => `vol-${Math.random().toString(16).slice(2, 10)}`
const rejects = (promise, kind, text) => assert.rejects(promise, (error) => error instanceof kind && text.test(String(error)))

const checks = {
  async "E2B's class does all that Python's does"() {
    const volume = await Volume.create(newName())
    assert.equal((await Volume.connect(volume.volumeId)).name, volume.name)
    assert.ok((await Volume.getInfo(volume.volumeId)).token)
    assert.ok((await Volume.list()).some((each) => each.volumeId === volume.volumeId))
    await rejects(Volume.create(volume.name), VolumeError, /409/)
    const made = await volume.makeDir('/a/b', { force: true, mode: 0o750, uid: 0, gid: 33 })
    assert.deepEqual([made.type, made.mode, made.uid, made.gid], ['directory', 0o750, 0, 33])
    const bytes = new Uint8Array(200_000).map((_, index) => index % 251)
    await volume.writeFile('/a/text', 'täxt')
    await volume.writeFile('/a/bytes', bytes.buffer)
    await volume.writeFile('/a/blob', new Blob([bytes]))
    await volume.writeFile('/a/stream', new Blob([bytes]).stream())
    assert.equal(await volume.readFile('/a/text'), 'täxt')
    for (const name of ['bytes', 'blob', 'stream'])
      assert.deepEqual(await volume.readFile(`/a/${name}`, { format: 'bytes' }), bytes)
    assert.equal((await volume.readFile('/a/blob', { format: 'blob' })).size, bytes.length)
    let read = 0
    for await (const piece of await volume.readFile('/a/stream', { format: 'stream' })) read += piece.length
    assert.equal(read, bytes.length)
    assert.deepEqual((await volume.list('/a')).map((each) => each.name), ['b', 'blob', 'bytes', 'stream', 'text'])
    assert.equal((await volume.updateMetadata('/a/text', { mode: 0o600 })).mode, 0o600)
    assert.equal((await volume.getInfo('/a/text')).size, 5)
    assert.equal(await volume.exists('/a/text'), true)
    await rejects(volume.readFile('/none'), VolumePathNotFoundError, /none/)
    const sandbox = await Sandbox.create({ timeoutMs: 60_000, volumeMounts: { '/mnt/x': volume } })
    try {
      assert.equal(await sandbox.files.read('/mnt/x/a/text'), 'täxt')
      assert.deepEqual((await sandbox.getInfo()).volumeMounts, [{ name: volume.name, path: '/mnt/x' }])
      await rejects(Volume.destroy(volume.volumeId), VolumeError, /409/)
    } finally {
      await sandbox.kill()
    }
    await volume.remove('/a')
    assert.equal(await volume.exists('/a'), false)
    assert.equal(await Volume.destroy(volume.volumeId), true)
    assert.equal(await Volume.destroy(volume.volumeId), false)
  },

  async "Hyperbrowser's volumes"() {
    const client = new Hyperbrowser({ baseUrl: process.env.HYPERBROWSER_BASE_URL })
    const volume = await client.volumes.create({ name: newName() })
    assert.equal((await client.volumes.get(volume.id)).name, volume.name)
    assert.ok((await client.volumes.list({ search: volume.name })).volumes.some((each) => each.id === volume.id))
    const sandbox = await client.sandboxes.create({ imageName: 'base', mounts: { '/mnt/w': { id: volume.id, type: 'rw' } } })
    try {
      await sandbox.files.writeText('/mnt/w/hello.txt', 'hello from volume')
      assert.equal(await sandbox.files.readText('/mnt/w/hello.txt'), 'hello from volume')
      await assert.rejects(client.volumes.delete(volume.id), (error) => error.statusCode === 409)
    } finally {
      await sandbox.stop()
    }
    assert.equal((await client.volumes.delete(volume.name)).deleted, true)
  },

  async "Novita's volumes have quotas"() {
    const volume = await novita.Volume.create(newName(), { quotaSizeGiB: 2 })
    assert.equal((await novita.Volume.getInfo(volume.volumeId)).name, volume.name)
    assert.ok((await novita.Volume.list()).some((each) => each.volumeId === volume.volumeId))
    const sandbox = await novita.Sandbox.create({ timeoutMs: 60_000, volumeMounts: { '/mnt/x': volume } })
    assert.equal((await sandbox.commands.run('touch /mnt/x/f && ls /mnt/x')).stdout, 'f\n')
    await sandbox.kill()
    assert.equal(await novita.Volume.destroy(volume.volumeId), true)
  },
}

await checks[process.argv[2]]()
process.exit(0)
