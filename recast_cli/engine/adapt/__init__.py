"""Images and a base become a task: probe, train, choose an epoch, refit the head, record, resume."""
