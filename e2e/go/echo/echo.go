// Package echo names the programs that Gateway API's mesh tests have pods run, so that go.mod and go.sum fix what they are built of.
package echo

import (
	_ "istio.io/istio/pkg/test/echo/cmd/client"
	_ "istio.io/istio/pkg/test/echo/cmd/server"
)
