"""Readers and writers of weight files, one module a format."""
