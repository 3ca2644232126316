"""What a computation runs on: processor count, reusable buffers, stage timer, silenced third-party code.

The lowest room: it knows nothing of cases, images or models.
"""
