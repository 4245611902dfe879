"""The watchdog: periodic tasks that restart lost jobs, settle their ends and send webhooks."""
