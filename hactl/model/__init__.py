"""Specification and status types, validation; pure."""
