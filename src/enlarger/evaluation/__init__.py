"""Judging: metrics, protocols, reports."""
