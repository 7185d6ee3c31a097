"""What outlives a request: projects, keys, files, jobs and what happened to them, in a database; a process for each job."""
