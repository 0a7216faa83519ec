"""What needs explicit collectives: one file per mesh axis that does."""
