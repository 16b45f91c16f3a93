// Says what Go makes of objects: reads one JSON object a line, writes for each its protobuf in base64, a tab, and the JSON
// that Go reads back out of that protobuf; or "-" where the kind is not registered. The objects are those of the test
// `protobuf` (see there how to run both). Built in GOPATH mode from Debian's golang-k8s-*-dev packages (sid):
//
//	GO111MODULE=off GOPATH=/usr/share/gocode go run truth.go <objects >truth
package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"

	extensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	extensionsv1beta1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1beta1"
	admissionv1 "k8s.io/api/admission/v1"
	admissionv1beta1 "k8s.io/api/admission/v1beta1"
	discoveryv2 "k8s.io/api/apidiscovery/v2"
	discoveryv2beta1 "k8s.io/api/apidiscovery/v2beta1"
	imagepolicyv1alpha1 "k8s.io/api/imagepolicy/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1beta1 "k8s.io/apimachinery/pkg/apis/meta/v1beta1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
	metricsv1alpha1 "k8s.io/metrics/pkg/apis/metrics/v1alpha1"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

func main() {
	all := scheme.Scheme
	for _, add := range []func(*runtime.Scheme) error{
		extensionsv1.AddToScheme, extensionsv1beta1.AddToScheme, metricsv1beta1.AddToScheme, metricsv1alpha1.AddToScheme,
		admissionv1.AddToScheme, admissionv1beta1.AddToScheme, discoveryv2.AddToScheme, discoveryv2beta1.AddToScheme,
		imagepolicyv1alpha1.AddToScheme, metav1.AddMetaToScheme, metav1beta1.AddMetaToScheme,
	} {
		if err := add(all); err != nil {
			panic(err)
		}
	}
	codec := protobuf.NewSerializer(all, all)
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<28)
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	for lines.Scan() {
		var meta metav1.TypeMeta
		if err := json.Unmarshal(lines.Bytes(), &meta); err != nil {
			panic(err)
		}
		object, err := all.New(schema.FromAPIVersionAndKind(meta.APIVersion, meta.Kind))
		if err != nil {
			fmt.Fprintln(out, "-")
			continue
		}
		if err := json.Unmarshal(lines.Bytes(), object); err != nil {
			panic(fmt.Errorf("%w: %s", err, lines.Text()))
		}
		bytes, err := runtime.Encode(codec, object)
		if err != nil {
			panic(fmt.Errorf("%w: %s", err, lines.Text()))
		}
		back, err := runtime.Decode(codec, bytes)
		if err != nil {
			panic(fmt.Errorf("%w: %s", err, lines.Text()))
		}
		text, err := json.Marshal(back)
		if err != nil {
			panic(fmt.Errorf("%w: %s", err, lines.Text()))
		}
		fmt.Fprintf(out, "%s\t%s\n", base64.StdEncoding.EncodeToString(bytes), text)
	}
	if err := lines.Err(); err != nil {
		panic(err)
	}
}
