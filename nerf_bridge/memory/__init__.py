"""Runs that fit: the ladder of smaller ways to do a step, the estimate of what a run needs, the check before it."""
