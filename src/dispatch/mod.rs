//! Order, attempts and parking of the cells in hand.
