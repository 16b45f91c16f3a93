//! [`kube::Resource`] for the kinds of either family whose fields are not under `spec`.

/// Implements [`kube::Resource`] for a type with a `metadata` field whose group and version are a value.
macro_rules! dynamic_resource {
    ($type:ty) => {
        impl kube::Resource for $type {
            type DynamicType = kube::core::ApiResource;
            type Scope = kube::core::DynamicResourceScope;

            fn kind(dt: &Self::DynamicType) -> std::borrow::Cow<'_, str> {
                dt.kind.as_str().into()
            }

            fn group(dt: &Self::DynamicType) -> std::borrow::Cow<'_, str> {
                dt.group.as_str().into()
            }

            fn version(dt: &Self::DynamicType) -> std::borrow::Cow<'_, str> {
                dt.version.as_str().into()
            }

            fn plural(dt: &Self::DynamicType) -> std::borrow::Cow<'_, str> {
                dt.plural.as_str().into()
            }

            fn meta(&self) -> &kube::core::ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut kube::core::ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

pub(crate) use dynamic_resource;
