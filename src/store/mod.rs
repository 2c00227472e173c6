//! What is durable: the traits `Log` and `Ledger` over DynamoDB (a server, or embedded) and over memory.
