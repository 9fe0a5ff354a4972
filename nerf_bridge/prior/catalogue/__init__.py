"""Where the priors come from: aliases and mirrors, the hub, the lock file, folders on the disk."""
