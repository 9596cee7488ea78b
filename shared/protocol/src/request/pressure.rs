//! What may be asked of the resource-manager about pressure.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Shows how much pressure there is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GetPressure {}
