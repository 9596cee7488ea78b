//! What may be asked of the resource-manager about alerts.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::alert::{AlertKind, AlertSeverity, AlertView};
use crate::id::Number;

/// Lists alerts, the latest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListAlerts {
    /// Also those that are over and acknowledged.
    #[serde(default)]
    pub all: bool,
    /// Only those that matter at least so much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<AlertSeverity>,
    /// Only those of this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<AlertKind>,
    /// At most so many; 100 if nothing is said, 1000 at the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Only those that were raised before this one: the last of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Number>,
}

/// Alerts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AlertList {
    /// The latest first.
    pub alerts: Vec<AlertView>,
}

/// Says that somebody has seen an alert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AcknowledgeAlert {
    /// Which.
    pub alert: Number,
    /// Who, for those who read it later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}
