"""Images from registries, archives and layouts: pulled without rights, unpacked without a network, kept as trees."""
