"""What two papers share: heads, and later queues, teachers, clustering."""
