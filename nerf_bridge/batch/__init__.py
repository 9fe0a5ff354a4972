"""Many runs from one file: the job list and the queue."""
