//! What an agent author uses: register, heartbeat, handle, report.
