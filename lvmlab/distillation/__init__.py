"""What a student learns from a teacher: the divergences, the teacher's outputs, and the cache of them.

The training loop knows nothing of it. It imports the rooms from `utils/` to `model/`.
"""
