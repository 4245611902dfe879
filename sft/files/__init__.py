"""Files and folders: atomic publication, allowed roots, temporary folders, full disks."""
