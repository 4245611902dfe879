"""Text that others wrote: made safe to store, to log and to show."""
