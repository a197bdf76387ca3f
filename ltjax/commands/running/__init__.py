"""Many runs, one after the other, each a process of its own: what reproduce and sweep share."""
