//! DynamoDB Local.
