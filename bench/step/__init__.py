"""Whole training steps: forward, loss, backward, optimizer, each implementation in a process of its own."""
