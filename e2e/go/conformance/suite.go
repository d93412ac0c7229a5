// Package suite names Gateway API's conformance suite, so that go.mod and go.sum fix all of it.
package suite

import _ "sigs.k8s.io/gateway-api/conformance"
