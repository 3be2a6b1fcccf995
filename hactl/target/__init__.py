"""LIO: desired tree (pure), configfs, device-mapper gate."""
