"""Command line: parse, call, render; the only place that prints."""
