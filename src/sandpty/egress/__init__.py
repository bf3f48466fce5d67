"""The egress process: names for sandboxes that may reach domains, and a look at what they connect to."""
