"""What tests the training code of this partner: synthetic users, the real code, a throwaway ledger."""
