"""What a run would need on devices that are not attached: its programs, compiled from shapes alone."""
