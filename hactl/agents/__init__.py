"""The node agent: observe, plan (pure), execute, serve."""
