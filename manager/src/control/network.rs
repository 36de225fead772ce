//! Networks, as far as users see them today: the three that exist from `init` on.

use rswarm_api::v1;
use tonic::Status;

use super::ControlService;
use super::filter::Filters;

impl ControlService {
    pub(super) async fn networks(
        &self,
        request: &v1::ListNetworksRequest,
    ) -> Result<v1::ListNetworksResponse, Status> {
        let filters = Filters::new(&request.filters, &["id", "name", "label", "driver"])?;
        let drivers: Vec<rswarm_types::NetworkDriver> = filters.parsed("driver")?;
        let state = self.context.read().await?;
        let networks = state
            .networks()
            .filter(|network| {
                filters.prefix("id", &network.id.to_string())
                    && filters.prefix("name", &network.spec.name)
                    && filters.label("label", &network.spec.labels)
                    && (drivers.is_empty() || drivers.contains(&network.spec.driver))
            })
            .map(|network| (&**network).into())
            .collect();
        Ok(v1::ListNetworksResponse { networks })
    }
}
