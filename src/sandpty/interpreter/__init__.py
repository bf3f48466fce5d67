"""The program that serves `run_code` inside a sandbox (port 49999), over Jupyter kernels.

It runs in the guest under the name `sandpty_interpreter`, as the guest's user, with what the template holds: nothing of
the other packages of ours is there, so its modules import each other relatively.
"""
