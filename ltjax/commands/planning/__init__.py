"""What a run would need on devices that are not there: its programs are compiled for them, nothing is run."""
