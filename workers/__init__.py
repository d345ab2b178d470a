"""What joins the ledger and the library: processes that claim jobs and run them."""
