"""What sandboxes are made from: the `base` template, and `host-usr` until it is built."""
