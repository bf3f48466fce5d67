"""SSH: terminals, commands, files and forwarded connections of sandboxes for OpenSSH and all that speaks like it.

`gateway` puts it together; docs/reference/ssh.md is what a client sees. Imported only when `sandpty serve --ssh-port`
asks for it: asyncssh takes a quarter of a second and 16 MB.
"""
