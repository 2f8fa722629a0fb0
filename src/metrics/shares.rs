//! What clients share, and why somebody got no more of it: the labels of `relay_share_refusals_total`.

use metrics::{Counter, counter};

/// The counter of those who got no more of this.
pub(super) fn share_counter(of: Shared, why: Why) -> Counter {
    counter!("relay_share_refusals_total", "of" => of.label(), "why" => why.label())
}

/// What clients share, each address up to its share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shared {
    /// Sessions at one time.
    Connections,
    /// Memory of messages that have not come whole.
    Unfinished,
    /// Room in the store.
    Storage,
}

/// Why somebody got no more of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Nothing is left.
    Full,
    /// Its address has its share.
    Address,
    /// A wider network around it has its share.
    Network,
    /// Little is left, and others hold less.
    Scarce,
}

impl Shared {
    pub(super) const ALL: [Self; 3] = [Self::Connections, Self::Unfinished, Self::Storage];

    const fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Unfinished => "unfinished",
            Self::Storage => "storage",
        }
    }
}

impl Why {
    pub(super) const ALL: [Self; 4] = [Self::Full, Self::Address, Self::Network, Self::Scarce];

    const fn label(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Address => "address",
            Self::Network => "network",
            Self::Scarce => "scarce",
        }
    }
}
